"""R0 derived from the declaration, and what would bring it to one."""

from meningitis.models import GENERALISED
from meningitis.symbolic import control, next_generation

values = GENERALISED.values("epidemic", {"transmission_rate": "60/year"})
print(next_generation(GENERALISED).r0)
found = control(GENERALISED, values, efficacy=0.9)
print(f"R0 {found.r0:.2f}; share to vaccinate at efficacy 0.9: {found.coverage:.0%}")
