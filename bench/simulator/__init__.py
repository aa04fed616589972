"""The real admission code, run by thousands of containers in virtual time (bench/README.md, "The simulator")."""
