"""Support for the models of other libraries, imported only on demand."""
