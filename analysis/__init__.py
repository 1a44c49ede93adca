"""Reading a sweep: the statistics, tables, figures and the report on the results table and what lies beside it."""
