"""A training: the only home of torch, transformers, peft and datasets."""
