-- beside the database of MLflow, at the first start
CREATE DATABASE prefect;
