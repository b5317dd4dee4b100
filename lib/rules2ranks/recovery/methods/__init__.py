"""The recovery methods, a file each; `METHODS` has them by name."""

from rules2ranks.recovery.method import Method
from rules2ranks.recovery.methods.adalora import AdaLora
from rules2ranks.recovery.methods.dsee import DSEE
from rules2ranks.recovery.methods.eva import Eva
from rules2ranks.recovery.methods.loftq import CLoQ, LoftQ
from rules2ranks.recovery.methods.lora import Lora
from rules2ranks.recovery.methods.parts import FPF, HFT, BitFit
from rules2ranks.recovery.methods.pissa import Pissa
from rules2ranks.recovery.methods.s2ft import S2FT

ADAPTERS = (Lora(), Pissa(), Eva(), AdaLora(), LoftQ(), CLoQ())
IN_PLACE = (S2FT(), DSEE(), HFT(), BitFit(), FPF())
#: All methods, by the name that `Recovery.method` takes.
METHODS: dict[str, Method] = {method.name: method for method in (*ADAPTERS, *IN_PLACE)}
