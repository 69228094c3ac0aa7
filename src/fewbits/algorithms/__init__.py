"""How codes are chosen, one file each, seen only through a format's fit, round and decode."""
