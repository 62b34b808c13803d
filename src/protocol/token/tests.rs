use super::*;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto, encode};
use serde_json::{Value, json};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const NOW_MS: u64 = 1_700_000_000_000;
const NOW: u64 = NOW_MS / 1000;

/// Of each algorithm with a public key: the key, and a token that another program (openssl)
/// signed with the private one, which was thrown away.
const SIGNED: [(TokenAlgorithm, &str, &str); 3] = [
    (
        TokenAlgorithm::Rs256,
        "-----BEGIN PUBLIC KEY-----\n\
     MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAsE1Kg64iuSnZYIg+j6fC\n\
     PJinI5ZHi7LZvXjjYOxsC5VLG07/8QiAtwBESPJo9k2uLUt28PD9G5j0NS6FD9WA\n\
     yCrcWeRiEKP+HkeWVjOA1/+Vm+61vntMVAJrqmYl0LAPnH+dxRDO4YY1fPkbIHV2\n\
     ZYXJ7Yyfzl+7BlocchsPg/vpOUXC5JfLiSgyFeSn90T+NQZBdU33dJJFeAIqEy/j\n\
     FeEMBON4TR1LUk+0eXMzp5GyTJtcZXrj6+EAjGrymMAevR95Klki2GW5Gd+YrUT9\n\
     xLM1ZyYRX1yuQpj8NxLYXgRluzF9oOKR0veedznsoS6/aSL2FhVd5NFaTIVPRa0B\n\
     OQIDAQAB\n\
     -----END PUBLIC KEY-----",
        "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6IjcifQ.rmM42q0PE1BPmmJUxZ0L6KX481\
     RMVyBsqwpu7nOkAaJ7j82g_VhPGT0VChK3RbQPq5t1RSzNWBu6XlR3NDB92mWxK_KwNdPDNkt_JzB7Qi9Ngn1G\
     3-4_oFq7Fyjq1j_5fde7OnNcxWgwvC6uNhXj-8LuHXt1gm3M-Bcq-1x5tqiIM8NfEWW4_a-n-AoG2IB2ozgE4V\
     KUcBW56DFz4NU84AVLs02obVu2BOiHLFhg54t9qCyUW4cFOQVvLwkpYDYamIArOyEOsHIhBt0JeKbdOrLoabEn\
     K68GHt9cc1HiM5xina70zrHNIja55MGrVWC_GGv7pfjeV_EAa7pU_cYcBg",
    ),
    (
        TokenAlgorithm::Es256,
        "-----BEGIN PUBLIC KEY-----\n\
     MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEtOk1f9j83K+cxNUzYhy5eGKLxm3Q\n\
     3q1x6tqI1dn4ij9GASUU9kCsm0z5Ce6p5u8UrDhhB2O4x1aRj/Bm0n02+A==\n\
     -----END PUBLIC KEY-----",
        "eyJhbGciOiJFUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6IjcifQ.NBpzzzGUVHw84H8xPc1bco-\
     4bk73b4MXk8SK2A0NSnZ2ZJ0c_x2xq3p4xqQR2oy7j7Y2U4pmxzbGsmTum2dOfw",
    ),
    (
        TokenAlgorithm::EdDsa,
        "-----BEGIN PUBLIC KEY-----\n\
     MCowBQYDK2VwAyEAgOwNDvkFDiE4rpaQmiiJ1kuy+tKHA4JRFtc9pwjabHA=\n\
     -----END PUBLIC KEY-----",
        "eyJhbGciOiJFZERTQSJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6IjcifQ.uTEn5QqOsrdK0Yiw5hWDRDIgi4\
     r3MwV9hoVx2ExXFg89IbOXY5ZQn7jcL5IpzbVWKEGqztq0sN_YSBVmQeBoDA",
    ),
];

/// A public key that is too short.
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----\n\
     MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDNIWnmuR+ROivG5EOisXSmXWHu\n\
     82GvhG7OsqTFQ2/ohJ4xhhhDJ1THPt9XYAOHmP0Vjgq8oFgufcFVeJxgHstbBeXa\n\
     dXr+MJOiRt2sWsJRogIPVd9fGZv5IIvvRi7hm1iND2W3mFSwSshOOe5Zzl/TS01g\n\
     E0yjDjwvx7mM1/zCFQIDAQAB\n\
     -----END PUBLIC KEY-----";

/// A public key of a curve that no algorithm uses.
const P384: &str = "-----BEGIN PUBLIC KEY-----\n\
     MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEeOA+YREcGYIrXZe/3+hZQqphidalLCGf\n\
     cAsqDj49DB48uQ5xLPoBaIPkEUXVcTqD701Yqfo3iNZGwcplk8qBkFsdhB3Idmyi\n\
     ndfLL62ZR+s/k61d7F8OfhIfQwgVAH5W\n\
     -----END PUBLIC KEY-----";

fn rule() -> TokenRule {
    let sources = TokenSources::default();
    TokenRule::with_key(TokenAlgorithm::Hs256, KEY, sources).expect("the key is long enough")
}

impl TokenRule {
    /// Checks a token with the configured keys, at [`NOW_MS`].
    fn judge(&self, token: &str) -> Result<Pass, TokenError> {
        self.judge_at(token, NOW_MS)
    }

    fn judge_at(&self, token: &str, unix_ms: u64) -> Result<Pass, TokenError> {
        let RuleKeys::Fixed(keys) = &self.keys else { panic!("the keys are fetched") };
        self.read(token, unix_ms, Some(keys))
    }
}

/// A rule with a key that no configuration could write.
fn with_decoding_key(algorithm: TokenAlgorithm, key: DecodingKey) -> TokenRule {
    let key = VerifyingKey::from_parts(None, algorithm, String::new(), key);
    let keys = KeySet::new(vec![key]).expect("one key is a set");
    TokenRule::new(RuleKeys::Fixed(keys), TokenSources::default())
}

fn signed(header: &Header, key: &str, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(key.as_bytes())).expect("claims are JSON")
}

fn read(claims: &Value) -> Result<Pass, TokenError> {
    rule().judge(&signed(&Header::default(), KEY, claims))
}

#[test]
fn claims_become_context_and_channels() {
    let claims = json!({"exp": NOW + 10, "sub": "a\"7", "channels": ["x", "y"],
        "context": {"user_id": 1, "big": 18446744073709551615u64, "a": {"b": [1.5]}}});
    let pass = read(&claims).expect("it is valid");
    assert_eq!((pass.until_unix_ms, pass.channels.len()), (NOW_MS + 70_000, 2));
    assert_eq!(pass.subject.as_deref(), Some("a\"7"));
    let entry = |key: &str, value: &str| (Box::from(key), Box::from(value));
    let expected = [
        entry("a", r#"{"b":[1.5]}"#),
        entry("big", "18446744073709551615"),
        entry("user_id", r#""a\"7""#),
    ];
    assert_eq!(pass.context, expected);
}

#[test]
fn times_are_checked_with_a_minute_to_spare() {
    for (claims, expected) in [
        (json!({"exp": NOW - 59}), Ok(())),
        (json!({"exp": NOW - 60}), Err(TokenError::Expired)),
        (json!({"exp": -1}), Err(TokenError::Expired)),
        (json!({"exp": NOW + 1, "nbf": NOW + 60}), Ok(())),
        (json!({"exp": NOW + 1, "nbf": NOW as f64 + 60.5}), Err(TokenError::Early)),
        (json!({"exp": 1e300}), Ok(())),
    ] {
        assert_eq!(read(&claims).map(drop), expected, "{claims}");
    }
}

/// The claims of a token, with `exp`, in their own words.
fn read_text(claims: &str) -> Result<Pass, TokenError> {
    let text = format!("{{\"exp\":{},{claims}}}", NOW + 10);
    rule().judge(&signed_text(r#"{"alg":"HS256"}"#, &text))
}

fn signed_text(head: &str, claims: &str) -> String {
    let signed = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let key = EncodingKey::from_secret(KEY.as_bytes());
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256);
    format!("{signed}.{}", signature.expect("the key is a secret"))
}

#[test]
fn a_claim_of_the_wrong_type_is_not_taken_for_absent() {
    for (claims, wrong) in [
        (json!({}), "exp is missing"),
        (json!({"exp": (NOW + 10).to_string()}), "exp is not a number"),
        (json!({"exp": null}), "exp is not a number"),
        (json!({"exp": [NOW + 10]}), "exp is not a number"),
        (json!([NOW + 10, null, "7"]), "they are not an object in which each name appears once"),
        (json!("7"), "they are not an object in which each name appears once"),
        (json!(null), "they are not an object in which each name appears once"),
    ] {
        assert_eq!(read(&claims).map(drop), Err(TokenError::Claims(wrong)), "{claims}");
    }
    let audience = "aud is neither a string nor a list of strings";
    let subject = "sub is neither a string nor a 64-bit integer";
    let channels = "channels is not a list of names of 1 to 255 bytes";
    let context = "context is not an object with unique keys of 1 to 255 bytes";
    for (claims, wrong) in [
        (r#""aud":1"#, audience),
        (r#""aud":null"#, audience),
        (r#""aud":true"#, audience),
        (r#""aud":{}"#, audience),
        (r#""aud":{"0":"us"}"#, audience),
        (r#""aud":["us",1]"#, audience),
        (r#""aud":["us",null]"#, audience),
        (r#""aud":[["us"]]"#, audience),
        (r#""iss":1"#, "iss is not a string"),
        (r#""iss":["us"]"#, "iss is not a string"),
        (r#""iss":null"#, "iss is not a string"),
        (r#""nbf":"0""#, "nbf is not a number"),
        (r#""nbf":null"#, "nbf is not a number"),
        (r#""nbf":true"#, "nbf is not a number"),
        (r#""iat":"0""#, "iat is not a number"),
        (r#""iat":{}"#, "iat is not a number"),
        (r#""sub":1.5"#, subject),
        (r#""sub":1e3"#, subject),
        (r#""sub":18446744073709551616"#, subject),
        (r#""sub":null"#, subject),
        (r#""sub":["7"]"#, subject),
        (r#""channels":"a""#, channels),
        (r#""channels":null"#, channels),
        (r#""channels":{"0":"a"}"#, channels),
        (r#""channels":["a",1]"#, channels),
        (r#""channels":[""]"#, channels),
        (r#""context":[]"#, context),
        (r#""context":null"#, context),
        (r#""context":[["a",1]]"#, context),
        (r#""context":{"":1}"#, context),
        (r#""context":{"a":1,"\u0061":1}"#, context),
        (r#""sub":"1","sub":"2""#, "they are not an object in which each name appears once"),
        (r#""aud":"x","\u0061ud":"x""#, "they are not an object in which each name appears once"),
        (r#""x":1,"x":1"#, "they are not an object in which each name appears once"),
    ] {
        assert_eq!(read_text(claims).map(drop), Err(TokenError::Claims(wrong)), "{claims}");
    }
    let long = format!(r#""context":{{"{}":1}}"#, "x".repeat(256));
    assert_eq!(read_text(&long).map(drop), Err(TokenError::Claims(context)));
}

#[test]
fn a_subject_is_a_string_or_an_integer_and_stays_as_it_was_signed() {
    for subject in [r#""7""#, r#""""#, r#""\u0037\ud83d\ude00""#, "7", "-7", "18446744073709551615"]
    {
        let claims = format!(r#""sub":{subject},"context":{{"user_id":1,"a":[]}}"#);
        let context = read_text(&claims).expect("it is one").context;
        let entry = |key: &str, value: &str| (Box::from(key), Box::from(value));
        assert_eq!(context, [entry("a", "[]"), entry("user_id", subject)], "{subject}");
    }
}

#[test]
fn claims_that_some_back_end_could_not_read_are_refused() {
    let deep = format!(r#""context":{{"a":{}{}}}"#, "[".repeat(63), "]".repeat(63));
    for (claims, kind) in [
        (r#""context":{"a":"\ud800"}"#, json::FlawKind::HalfSurrogate),
        (r#""context":{"\udc00":1}"#, json::FlawKind::HalfSurrogate),
        (r#""context":{"a":1e400}"#, json::FlawKind::HugeNumber),
        (r#""nbf":-1e400"#, json::FlawKind::HugeNumber),
        (r#""context":{"a":01}"#, json::FlawKind::BadNumber),
        (&deep, json::FlawKind::Deep),
    ] {
        match read_text(claims) {
            Err(TokenError::NotJson(flaw)) => assert_eq!(flaw.kind, kind, "{claims}"),
            other => panic!("{claims}: {other:?}"),
        }
    }
    let deep = deep.replacen('[', "", 1).replacen(']', "", 1);
    assert!(read_text(&deep).is_ok());
    let not_utf8 = [&b"{\"exp\":9999999999,\"sub\":\""[..], b"\xff\"}"].concat();
    let signed = [&br#"{"alg":"HS256"}"#[..], &not_utf8].map(|part| URL_SAFE_NO_PAD.encode(part));
    let signed = signed.join(".");
    let key = EncodingKey::from_secret(KEY.as_bytes());
    let signature = crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).expect("a secret");
    let read = rule().judge(&format!("{signed}.{signature}")).map(drop);
    assert!(matches!(read, Err(TokenError::NotJson(_))), "{read:?}");
}

#[test]
fn a_token_is_for_whom_and_from_whom_the_route_says() {
    let ours = || TokenRule {
        audience: vec!["us".into(), "them".into()],
        issuer: Some("login".into()),
        ..rule()
    };
    for (claims, anybody, us) in [
        (json!({}), Ok(()), Err(TokenError::Audience)),
        (json!({"iss": "login"}), Ok(()), Err(TokenError::Audience)),
        (json!({"aud": "us", "iss": "login"}), Err(TokenError::Audience), Ok(())),
        (json!({"aud": ["x", "us"], "iss": "login"}), Err(TokenError::Audience), Ok(())),
        (json!({"aud": "us"}), Err(TokenError::Audience), Err(TokenError::Issuer)),
        (json!({"aud": "us", "iss": "Login"}), Err(TokenError::Audience), Err(TokenError::Issuer)),
        (
            json!({"aud": "US", "iss": "login"}),
            Err(TokenError::Audience),
            Err(TokenError::Audience),
        ),
        (json!({"aud": [], "iss": "login"}), Err(TokenError::Audience), Err(TokenError::Audience)),
        (json!({"aud": "", "iss": "login"}), Err(TokenError::Audience), Err(TokenError::Audience)),
    ] {
        let mut claims = claims;
        claims["exp"] = json!(NOW + 10);
        assert_eq!(read(&claims).map(drop), anybody, "{claims}");
        let token = signed(&Header::default(), KEY, &claims);
        assert_eq!(ours().judge(&token).map(drop), us, "{claims}");
    }
}

#[test]
fn a_header_is_an_object_that_names_the_algorithm_of_the_route() {
    let claims = format!("{{\"exp\":{}}}", NOW + 10);
    for (head, expected) in [
        (r#"{"alg":"HS256"}"#, Ok(())),
        (r#"{"typ":7,"alg":"HS256","kid":null,"x":{}}"#, Ok(())),
        (r#"{"alg":"HS512"}"#, Err(TokenError::Algorithm)),
        (r#"{"alg":"hs256"}"#, Err(TokenError::Algorithm)),
        (r#"{"alg":"none"}"#, Err(TokenError::Algorithm)),
        (r#"{"alg":""}"#, Err(TokenError::Algorithm)),
        (r#"{"alg":"HS256","crit":["exp"]}"#, Err(TokenError::Extension)),
        (r#"{"alg":"HS256","crit":[]}"#, Err(TokenError::Extension)),
        (r#"{"alg":"HS256","crit":null}"#, Err(TokenError::Extension)),
        (r#"{"alg":"none","alg":"HS256"}"#, Err(TokenError::Malformed)),
        (r#"{"alg":["HS256"]}"#, Err(TokenError::Malformed)),
        (r#"{"alg":null}"#, Err(TokenError::Malformed)),
        (r#"{"alg":"HS256","kid":7}"#, Err(TokenError::Malformed)),
        (r#"{"alg":"HS256","kid":"any"}"#, Ok(())),
        (r#"["JWT","HS256"]"#, Err(TokenError::Malformed)),
        (r#"["HS256"]"#, Err(TokenError::Malformed)),
        ("{}", Err(TokenError::Malformed)),
        ("", Err(TokenError::Malformed)),
    ] {
        assert_eq!(rule().judge(&signed_text(head, &claims)).map(drop), expected, "{head}");
    }
}

/// RFC 7515, appendices A.1 and A.3.
#[test]
fn the_examples_of_the_rfc_are_read() {
    const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
                          cGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuT\
                  wjAzZr1Z9CAow";
    let secret = URL_SAFE_NO_PAD.decode(secret).expect("it is base64");
    let by_secret = with_decoding_key(TokenAlgorithm::Hs256, DecodingKey::from_secret(&secret));
    let key = DecodingKey::from_ec_components(
        "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    );
    let key = key.expect("a point of the curve");
    let by_curve = with_decoding_key(TokenAlgorithm::Es256, key);
    for (rule, head, signature) in [
        (
            by_secret,
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            by_curve,
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-\
             Kg6NU1Q",
        ),
    ] {
        let token = format!("{head}.{CLAIMS}.{signature}");
        let pass = rule.judge_at(&token, 1_300_819_379_000).expect("it has not expired");
        assert_eq!(pass.until_unix_ms, 1_300_819_440_000);
        assert_eq!(rule.judge(&token), Err(TokenError::Expired));
        let issuer = Some("jane".to_owned());
        let other = TokenRule { issuer, ..rule };
        assert_eq!(other.judge_at(&token, 1_300_819_379_000), Err(TokenError::Issuer));
    }
}

#[test]
fn a_token_that_was_signed_otherwise_is_invalid() {
    let claims = json!({"exp": NOW + 10});
    let right = signed(&Header::default(), KEY, &claims);
    assert!(rule().judge(&right).is_ok());
    let (message, _) = right.rsplit_once('.').expect("three parts");
    // {"alg":"none"}
    let none = format!("eyJhbGciOiJub25lIn0.{}.", message.split_once('.').expect("two").1);
    let crit = Header { crit: Some(vec!["exp".into()]), ..Header::default() };
    let foreign = signed(&Header::default(), "another key of enough bytes to pass", &claims);
    let (head, rest) = right.split_once('.').expect("three parts");
    let (claims_part, signature) = rest.split_once('.').expect("three parts");
    for (token, expected) in [
        (foreign, TokenError::Signature),
        (signed(&Header::new(Algorithm::HS384), KEY, &claims), TokenError::Algorithm),
        (signed(&crit, KEY, &claims), TokenError::Extension),
        (none, TokenError::Algorithm),
        (format!("{message}."), TokenError::Signature),
        (format!("{message}.{}", &signature[..20]), TokenError::Signature),
        (format!("{head}.{claims_part}x.{signature}"), TokenError::Malformed),
        (format!("{message}.%%%"), TokenError::Malformed),
        (message.to_owned(), TokenError::Malformed),
        (format!("{right}.x"), TokenError::Malformed),
        ("a.b.c".into(), TokenError::Malformed),
        (String::new(), TokenError::Malformed),
    ] {
        assert_eq!(rule().judge(&token).map(drop), Err(expected), "{token}");
    }
}

#[test]
fn a_token_of_each_algorithm_is_read_with_its_own_key_alone() {
    for (at, (algorithm, key, token)) in SIGNED.into_iter().enumerate() {
        let rule = TokenRule::with_key(algorithm, key, TokenSources::default()).expect("its key");
        let pass = rule.judge(token).expect("its token");
        assert_eq!(pass.until_unix_ms, 4_102_444_860_000, "{algorithm:?}");
        for (other, (_, other_key, other_token)) in SIGNED.into_iter().enumerate() {
            let read = rule.judge(other_token);
            assert_eq!(read.is_ok(), at == other, "{algorithm:?}");
            let made = TokenRule::with_key(algorithm, other_key, TokenSources::default());
            // A key of another kind is refused when it is made, or verifies nothing.
            let read = made.map(|rule| rule.judge(token).is_ok());
            assert_eq!(read == Some(true), at == other, "{algorithm:?}");
        }
        // RFC 8725, section 2.1: a public key is no secret to sign with.
        let forged = signed(&Header::default(), key, &json!({"exp": NOW + 10}));
        assert!(rule.judge(&forged).is_err());
    }
}

#[test]
fn a_key_is_long_enough_or_of_its_algorithm() {
    let sources = TokenSources::default();
    assert!(TokenRule::with_key(TokenAlgorithm::Hs256, &KEY[1..], sources).is_none());
    for algorithm in [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDsa] {
        assert!(TokenRule::with_key(algorithm, KEY, sources).is_none(), "{algorithm:?}");
    }
    for (algorithm, key) in [(TokenAlgorithm::Rs256, RSA_1024), (TokenAlgorithm::Es256, P384)] {
        assert!(TokenRule::with_key(algorithm, key, sources).is_none(), "{algorithm:?}");
    }
}

#[test]
fn a_rule_does_not_show_its_key() {
    assert!(!format!("{:?}", rule()).contains(KEY));
}
