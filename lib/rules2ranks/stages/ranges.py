"""What values the parameters may have that several stages and notebooks share."""

from typing import Annotated

from pydantic import Field

Rule = Annotated[int, Field(ge=0, le=255, description="ECA rule in Wolfram's numbering")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Steps = Annotated[int, Field(ge=1, le=10_000_000, description="optimiser steps")]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1, description="learning rate")]
Rank = Annotated[int, Field(ge=1, le=256, description="LoRA rank")]
