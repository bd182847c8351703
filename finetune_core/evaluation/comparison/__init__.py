"""How several runs compare: arms, pairs, verdicts, costs, and what training moved."""
