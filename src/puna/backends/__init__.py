"""Places that run replicas, behind one small interface; and the guard that leaves nothing behind."""
