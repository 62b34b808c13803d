<?php
// The WebSocket API of gridcast in PHP, without a package.

/** One connection to a node. `$user` is `name:password` where the API has users. */
final class Gridcast
{
    private $stream;
    private int $calls = 0;

    public function __construct(string $address, ?string $user = null)
    {
        $this->stream = stream_socket_client("tcp://$address");
        if (!$this->stream) {
            throw new RuntimeException("$address does not answer");
        }
        $key = base64_encode(random_bytes(16));
        $login = $user === null ? '' : 'Authorization: Basic ' . base64_encode($user) . "\r\n";
        fwrite($this->stream, "GET /ws/v1 HTTP/1.1\r\nHost: $address\r\nConnection: Upgrade\r\n"
            . "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: $key\r\n$login\r\n");
        $status = fgets($this->stream);
        while (trim((string) fgets($this->stream)) !== '') {
            // the rest of the response's head
        }
        if (!str_contains((string) $status, ' 101 ')) {
            throw new RuntimeException("$address refused the WebSocket: $status");
        }
        stream_set_timeout($this->stream, 3600);
    }

    /** Sends a call. Calls take effect in their order, so there is no need to wait for answers. */
    public function call(string $method, array $params): void
    {
        $call = ['m' => $method, 'p' => $params, 'i' => ++$this->calls];
        $this->send(1, json_encode($call, JSON_THROW_ON_ERROR));
    }

    /** Each event of the consumed topics; ends with the connection. Failed calls are printed. */
    public function events(): Generator
    {
        while (($head = $this->take(2)) !== null) {
            [, $first, $second] = unpack('C2', $head);
            $size = match ($second) {
                126 => unpack('n', $this->take(2))[1],
                127 => unpack('J', $this->take(8))[1],
                default => $second,
            };
            $payload = $this->take($size);
            $opcode = $first & 15;
            if ($opcode === 9) {
                $this->send(10, $payload); // a ping wants a pong
            }
            if ($opcode === 8) {
                return;
            }
            if ($opcode !== 1) {
                continue;
            }
            $message = json_decode($payload, true, 128, JSON_THROW_ON_ERROR);
            if (isset($message['e'])) {
                yield $message['p'];
            } elseif (isset($message['E'])) {
                echo "call {$message['i']}: {$message['E']['m']}\n";
            }
        }
    }

    /** So many bytes; null at the end of the connection. */
    private function take(int $size): ?string
    {
        $bytes = '';
        while (strlen($bytes) < $size) {
            $more = fread($this->stream, $size - strlen($bytes));
            if ($more === false || $more === '') {
                return null;
            }
            $bytes .= $more;
        }
        return $bytes;
    }

    /** One masked frame, RFC 6455 section 5.2. */
    private function send(int $opcode, string $payload): void
    {
        $size = strlen($payload);
        $length = match (true) {
            $size < 126 => pack('C', 0x80 | $size),
            $size < 65536 => pack('Cn', 0xFE, $size),
            default => pack('CJ', 0xFF, $size),
        };
        $mask = random_bytes(4);
        $masked = $payload ^ str_repeat($mask, intdiv($size, 4) + 1);
        $frame = pack('C', 0x80 | $opcode) . $length . $mask . $masked;
        for ($sent = 0; $sent < strlen($frame); $sent += $written) {
            $written = fwrite($this->stream, substr($frame, $sent));
            if (!$written) {
                throw new RuntimeException('the connection broke');
            }
        }
    }
}
