"""How several runs compare: arms, pairs, verdicts, what training moved. Calls single_run and prediction."""
