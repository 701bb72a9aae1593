-- beside the database of MLflow, at the first start
CREATE DATABASE prefect ENCODING 'UTF8' TEMPLATE template0;
