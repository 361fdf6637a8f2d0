"""Reading and writing files, untrusted ones included; folders, downloads and input files."""
