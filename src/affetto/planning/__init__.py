"""What a run will need of memory, disk and time, estimated before anything is loaded."""
