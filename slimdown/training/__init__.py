"""A base and rows into an adapter and its training record. The only room that knows TRL."""
