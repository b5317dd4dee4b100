"""A searcher a file. All of them are imported here, so that each enters itself in `SEARCHERS`."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
