"""How the built-in models were made: synthetic corpora and the training. In the repository, in no wheel."""
