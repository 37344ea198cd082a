"""Reports: result files, tables, plots and progress lines. Nothing else imports this but the command line."""
