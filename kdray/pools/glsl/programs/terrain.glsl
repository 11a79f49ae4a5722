// Hills in perspective, fading into the sky.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at);
    float lift = between(0, 0.9, 1.6);
    vec3 ray = normalize(vec3(p.x, p.y - between(1, 0.0, 0.5), 1.5)), ground = vec3(0);
    vec2 start = vec2(0, 0.8 * iTime) + 20.0 * vec2(random(2), random(3));
    float far = 0.3, height = 0.0;
    bool met = false;
    for (int k = 0; k < 28; k++) {
        vec3 q = ray * far;
        height = between(4, 0.6, 1.4) * fbm(start + q.xz * 0.7);
        if (q.y + lift < height) {
            met = true;
            break;
        }
        far *= 1.13;
    }
    vec2 place = start + ray.xz * far * 0.7;
    float slope_ = fbm(place + 0.1) - fbm(place - 0.1);
    vec3 sky = mix(ink(5), ink(6), clamp(0.5 + p.y * 0.7, 0.0, 1.0));
    vec3 own = mix(ink(7), ink(8), smoothstep(0.3, 0.7, height)) * (0.7 + 2.5 * slope_);
    colour = vec4(met ? mix(own, sky, clamp(far / 9.0, 0.0, 1.0)) : sky, 1);
}
