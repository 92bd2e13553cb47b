"""What tests share: networks, servers, browsers, and files that go wrong."""
