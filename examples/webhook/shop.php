<?php
// A shop that takes orders, without a process of its own. Run: GRIDCAST_SECRET=change-me php -S 127.0.0.1:8080 -t examples/webhook
// Behind any web server and PHP-FPM it is the same: a request brings events of devices, and the answer is a list of calls.

const PRICES = ['tea' => 2, 'cake' => 4]; // your database

$body = file_get_contents('php://input');
$header = $_SERVER['HTTP_GRIDCAST_SIGNATURE'] ?? '';
if (!isSigned($body, $header, getenv('GRIDCAST_SECRET') ?: '')) {
    http_response_code(403);
    exit("not signed by gridcast\n");
}
$calls = [];
foreach (json_decode($body, true) as $event) {
    // An event may come again, with the same id. A shop with a database looks the id up before it delivers twice.
    array_push($calls, ...answer($event['subject'] ?? '', $event['data']['d']));
}
header('Content-Type: application/json');
echo json_encode($calls);

function isSigned(string $body, string $header, string $secret): bool
{
    if ($secret === '' || !preg_match('/^t=(\d+),v1=([0-9a-f]{64})$/', $header, $parts)) {
        return false;
    }
    // An old request may be a copy.
    $isRecent = abs(time() - (int) $parts[1]) <= 300;
    return $isRecent && hash_equals(hash_hmac('sha256', "$parts[1].$body", $secret), $parts[2]);
}

/** What to do about one event, in order. */
function answer(string $client, array $what): array
{
    if (($what['event'] ?? null) === 'open') {
        return [call($client, 'subscribe', 'kitchen'), send($client, ['menu' => PRICES])];
    }
    $message = json_decode($what['frame']['data'] ?? '', true);
    $order = is_array($message) ? $message['order'] ?? null : null;
    if (!is_string($order) || !isset(PRICES[$order])) {
        return [send($client, ['error' => 'not on the menu'])];
    }
    return [
        send($client, ['ordered' => $order, 'price' => PRICES[$order]]),
        ['m' => 'mesh.publish', 'p' => ['c' => 'kitchen', 'd' => json_encode(['make' => $order])]],
    ];
}

function send(string $client, array $message): array
{
    return ['m' => 'mesh.send', 'p' => ['c' => $client, 'd' => json_encode($message)]];
}

function call(string $client, string $function, string ...$arguments): array
{
    return ['m' => 'conn.call', 'p' => ['c' => $client, 'f' => $function, 'a' => $arguments]];
}
