"""Everything that decides. Pure: no socket, thread, clock, file, database, process, random number or log in here."""
