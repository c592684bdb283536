"""The systems, in the order in which they are shown."""

from __future__ import annotations

from examples.compact import dcn, dlrm, four_stage, gru_session, ncf, transformer_session, vae_cf, wide_deep
from examples.compact.system import System

__all__ = ["SYSTEMS"]

_MODULES = (dlrm, wide_deep, dcn, ncf, gru_session, transformer_session, vae_cf, four_stage)

SYSTEMS: dict[str, System] = {module.SYSTEM.name: module.SYSTEM for module in _MODULES}
