"""Training on one processor or many: knows no model, only a loss function, its params, and how they are sharded."""
