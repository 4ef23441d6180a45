"""Ends that come at the wrong moment: a victim, what it was told, its system calls, and the disk a crash leaves."""
