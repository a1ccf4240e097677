"""Files that the runtime and the converter both read and write, and how foreign text is shown."""
