"""The recovery methods, a file each; `METHODS` has them by name."""

from rules2ranks.recovery.method import Method
from rules2ranks.recovery.methods.adalora import AdaLora
from rules2ranks.recovery.methods.eva import Eva
from rules2ranks.recovery.methods.loftq import CLoQ, LoftQ
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.methods.pissa import Pissa

METHODS: dict[str, Method] = {method.name: method for method in (Lora(), Pissa(), Eva(), AdaLora(), LoftQ(), CLoQ())}
