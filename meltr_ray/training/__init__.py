"""One run of any workload: the loop, the meta step, DeepSpeed, batches and checkpoints."""
