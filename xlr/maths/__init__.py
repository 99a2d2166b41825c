"""The formulas, as pure functions of tensors and numbers. Imports only torch and the standard library."""
