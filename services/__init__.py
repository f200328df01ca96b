"""The running processes: one folder per service, which meet only in protos/."""
