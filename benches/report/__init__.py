"""What the pages of benchmarks have in common: the host they ran on, and tables between markers."""
