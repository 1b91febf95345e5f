"""Storage drivers: how a stack of read-only layers and a writable one become one tree."""
