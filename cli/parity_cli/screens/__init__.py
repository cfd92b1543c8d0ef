"""What people see: functions from documents to rich renderables."""
