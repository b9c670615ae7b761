"""Outputs: journals, Parquet files, folders of parts and streams; their readers and exports."""
