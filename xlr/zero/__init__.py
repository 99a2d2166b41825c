"""DeepSpeed ZeRO: its configuration, policy and reference engines, checkpoints."""
