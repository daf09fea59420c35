"""Where replicas run, behind one small interface; and the guard that leaves nothing behind."""
