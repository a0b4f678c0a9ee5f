-- Prefect searches flow runs and logs with it.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
