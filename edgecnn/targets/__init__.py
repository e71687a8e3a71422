"""Devices: this machine, boards over SSH, and devices that are not here."""
