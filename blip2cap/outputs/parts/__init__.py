"""Folders and buckets of Parquet parts that many processes share."""
