"""Every row that outlives a process: the database, its tables, and one module a noun."""
