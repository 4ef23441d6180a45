"""The running system: the daemon (parent) and its model worker."""
