"""Step 4 of the method: pairs -> model. Stages align, reference and train; DPO + NLL under DeepSpeed ZeRO."""
