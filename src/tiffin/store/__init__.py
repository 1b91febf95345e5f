"""The database: schema, migrations, transactions."""
