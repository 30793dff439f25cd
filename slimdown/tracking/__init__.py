"""Write runs to MLflow and read them back. No other folder imports MLflow."""
