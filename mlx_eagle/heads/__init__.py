"""Draft heads as modules, and every fact that their forward pass needs."""
