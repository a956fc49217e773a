"""What keeps the base as it was: EWC, distillation, rehearsal."""
