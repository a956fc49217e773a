"""affetto: teach a speech language model to speak with emotion without forgetting anything else."""
