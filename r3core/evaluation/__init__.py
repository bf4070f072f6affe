"""Evaluation: base and trained model on the same held-out problems, with controls, paired tests and other tasks.

`evaluate.py` generates the episodes of both models. `outcomes.py` judges one episode; `arms.py` and `pass_at.py` count
many; `result.py` makes the result of them, and `tables.py` its tables. `decoding.py` has what an evaluation generates,
by its configuration. `transfer.py` evaluates on other tasks, and `drift.py` compares the probabilities of both models.
`validator.py` evaluates the policy during training, and `validation.py` plans that.
"""
