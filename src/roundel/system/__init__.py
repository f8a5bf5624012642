"""What depends on the machine and the process: files, ranks, devices, memory, threads, who listens."""
