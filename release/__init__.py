"""What a release is made with: not part of the package. Run it as ``make release``."""
