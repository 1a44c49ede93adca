"""Importers, one a file: an original distribution in, a folder of this project's Parquet out."""
